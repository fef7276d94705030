# config/mono_en_50.py - Table 1, row 2; Table 3, row 2: English alone on half the tokens, a whole run with its own cosine
dataset = 'mono_en_50'
out_dir = 'out/mono_en_50'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN', 'en')]
schedule = [(0.0, (1.0,))]
max_iters = 18265 // 2
