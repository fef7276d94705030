# config/quickstart.py - A GPT of 2 x 256 on 2.2M tokens of the bundled novels: six minutes on a CPU core
dataset = 'quickstart_mono'
out_dir = 'out/quickstart/mono_100'
vocab_size = 384
block_size = 32
data_seed = 1                     # three novels are the test text
n_layer = 2
n_embd = 256
n_head = 2                        # eight narrow heads take longer to leave the plateau at the start
batch_size = 10
max_iters = 7000                  # the study: 14,000
warmup_iters = 350                # 5% of max_iters: change both
learning_rate = 1e-3
min_lr = 1e-5
beta2 = 0.99                      # a step has 320 tokens, the paper's 65,536: average over more steps
checkpoint_interval = eval_interval = 2000
log_interval = 100
