"""The same load on the same app, without the plugin and with it: ``python -m example_app.demo``."""
