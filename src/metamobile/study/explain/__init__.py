"""What a network looks at: class activation maps, the attention of its windows, its receptive field.

Without torch, so that an exported file needs its runtime alone:
subject     what a user calls a model, opened
methods     the maps by name
occlusion   where the answer falls when a patch is hidden: for networks, and for exported files
frame       from a network's input back to the pixels of the picture
figure, page, explain   the figure, the HTML page, the verb

Of networks:
layers      their stages and layers
question    what is asked about as a number with a gradient
cam         Grad-CAM and its kin, by the package grad-cam
attention   weights of a query in its true windows, put back at their positions
receptive   the effective receptive field of a stage's centre
inside      all of these for one network
"""
