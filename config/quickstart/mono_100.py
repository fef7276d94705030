# English alone on 100% of the tokens: the longest of the four runs behind the scaling law
from config.laptop import *
dataset = 'quickstart_mono'
out_dir = 'out/quickstart/mono_100'
languages = [('EN', 'en')]
schedule = [(0.0, (1.0,))]
