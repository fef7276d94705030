# config/cloned_10_uniform.py - Table 1, row 6: English and nine clones, a tenth each
dataset = 'cloned_10_uniform'
out_dir = 'out/cloned_10_uniform'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [(f'EN{i}', 'en') for i in range(1, 11)]
schedule = [(0.0, (0.1,) * 10)]
