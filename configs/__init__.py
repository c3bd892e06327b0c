"""Configs: each file has get_config(arg) and returns a locked ConfigDict."""
