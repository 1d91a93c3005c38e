"""Pages and figures: the report of a study and the page of an audit."""
