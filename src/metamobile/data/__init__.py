"""Pictures and what is known of them: read, found in folders, inspected, drawn by code, preprocessed, loaded.

`pictures` reads a file right, `folder` makes a data set of class folders, `inspect` names its bad files,
`shapes` draws one, `preprocess` is the one way into a network, `loader` the data set that training reads.
Only `loader` needs torch.
"""
