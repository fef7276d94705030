# The shape of the quickstart: a GPT of 4 x 128 on the built-in text, which 2 CPU cores train in a minute or two
corpora = {'en': 'docstrings'}
vocab_size = 1024
block_size = 128
test_frac = 0.01
n_layer = 4
n_embd = 128
n_head = 4
batch_size = 16
max_iters = 800
learning_rate = 2e-3
min_lr = 2e-5
warmup_iters = 20
eval_interval = 400
eval_iters = 10
checkpoint_interval = 400
