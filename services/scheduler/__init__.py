"""Jobs: submit, queue, admit, run their iterations."""
