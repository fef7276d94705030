# English and its clone, 50/50, 10% of the vocabulary not cloned
from config.novels import *
dataset = 'study_anchors_010'
out_dir = 'out/study/anchors_010'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
anchor_frac = 0.1
