# English and its clone, 90/10
from config.laptop import *
dataset = 'quickstart_cloned_90_10'
out_dir = 'out/quickstart/cloned_90_10'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
