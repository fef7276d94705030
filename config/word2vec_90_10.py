# config/word2vec_90_10.py - Figure 6, right: word2vec on the very batches of cloned_90_10
dataset = 'cloned_90_10'
out_dir = 'out/word2vec_90_10'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
model = 'word2vec'
learning_rate = 2e-3
min_lr = 2e-5
