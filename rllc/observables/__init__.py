"""What can be watched along chains; each file is one kind of :class:`rllc.Observable`."""
