"""What a network looks at: class activation maps, the attention of its windows, its receptive field.

subject     what a user calls a model, opened, with its stages and layers
target      the class or the object that is asked about, as a number with a gradient
cam         Grad-CAM and its kin, by the package grad-cam
occlusion   where the answer falls when a patch is hidden: for networks, and for exported files
attention   weights of a query in its true windows, put back at their positions
receptive   the effective receptive field of a stage's centre
frame       from a network's input back to the pixels of the picture
figure, page, explain   the figure, the HTML page, the verb
"""
