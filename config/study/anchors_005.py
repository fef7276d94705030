# English and its clone, 50/50, 5% of the vocabulary not cloned
from config.novels import *
dataset = 'study_anchors_005'
out_dir = 'out/study/anchors_005'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
anchor_frac = 0.05
