"""Reports: what was done and what it brought, as JSON, Markdown, HTML and on the console."""
