# English and its clone, 90/10 then 10/90
from config.novels import *
dataset = 'study_cloned_50_50'
out_dir = 'out/study/cloned_90_10_then_10_90'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
