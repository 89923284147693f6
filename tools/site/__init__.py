"""The documentation site: `python -m tools.site` builds it, `python -m tools.site.browse` visits it."""
