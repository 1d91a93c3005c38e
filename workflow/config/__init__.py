"""Studies and sites as YAML files, checked strictly."""
