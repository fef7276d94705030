# English and its clone, 50/50, 50% of the vocabulary not cloned
from config.novels import *
dataset = 'study_anchors_050'
out_dir = 'out/study/anchors_050'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
anchor_frac = 0.5
