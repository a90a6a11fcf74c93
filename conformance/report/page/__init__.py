"""The page: HTML from JSON reports. documents.py reads and checks them, view.py arranges what the page shows, files.py the
matrix of files, plots.py places marks, and write.py fills the templates and writes one file or a folder."""
