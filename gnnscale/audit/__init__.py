"""The stage `audit`: is the data beyond doubt? What is measured of every structure, checks, and one page."""
