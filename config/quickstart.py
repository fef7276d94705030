# config/quickstart.py - A GPT of 2 x 64 on 9M tokens of the novels in the box: four minutes on a CPU core
dataset = 'quickstart_mono'
out_dir = 'out/quickstart/mono_100'
vocab_size = 384
block_size = 32
data_seed = 1                     # three novels are the test text
n_layer = 2
n_embd = 64
n_head = 4
batch_size = 20
max_iters = 14000
learning_rate = 6e-3
min_lr = 6e-5
beta2 = 0.99                      # a step has 640 tokens, the paper's 65,536: average over more steps
checkpoint_interval = eval_interval = 2000
log_interval = 100
