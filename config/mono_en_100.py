# config/mono_en_100.py - Table 1, row 1; Table 3, row 1: English alone
dataset = 'mono_en_100'
out_dir = 'out/mono_en_100'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN', 'en')]
schedule = [(0.0, (1.0,))]
