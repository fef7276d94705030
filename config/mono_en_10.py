# config/mono_en_10.py - Table 1, row 3; Table 3, row 3: English alone on a tenth of the tokens, a whole run with its own cosine
dataset = 'mono_en_10'
out_dir = 'out/mono_en_10'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN', 'en')]
schedule = [(0.0, (1.0,))]
max_iters = 18265 // 10
