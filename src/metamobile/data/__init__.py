"""Pictures and what is known of them: read, found in folders, inspected, drawn by code, preprocessed, loaded.

`pictures` reads a file right; `folder` makes a data set of class folders, `boxes` one of COCO's json or
YOLO's files, `masks` one of pictures and masks; `inspect`, `inspect_boxes` and `inspect_masks` name what is
bad in them; `shapes` and `shape_scenes` draw some; `preprocess` is the one way into a network, `loader` the
data set that training reads.
Only `loader` needs torch.
"""
