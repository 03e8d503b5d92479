"""Error of momentum in bfloat16, relative to momentum in float32.

  python benchmarks/momentum_dtype.py

The benchmark runs optax's SGD and Adam for many steps on 256 gradients. It
compares the mean updates of the two dtypes. The gradients are constant, or have
noise with a standard deviation equal to the gradient.
"""

import jax
import jax.numpy as jnp
import optax

DECAYS = (0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)
NUM_GRADIENTS = 256


def transformation(optimizer, decay, dtype):
  if optimizer == 'sgd':
    return optax.trace(decay, accumulator_dtype=dtype)
  return optax.scale_by_adam(b1=decay, mu_dtype=dtype)


def mean_updates(tx, noise, num_steps):
  """Returns mean updates [NUM_GRADIENTS] over the last half of the steps."""
  signal_key, noise_key = jax.random.split(jax.random.key(0))
  signal = 2.0 ** jax.random.uniform(signal_key, (NUM_GRADIENTS,))

  def step(carry, i):
    state, total = carry
    grads = signal * (
      1
      + noise
      * jax.random.normal(jax.random.fold_in(noise_key, i), signal.shape)
    )
    updates, state = tx.update(grads, state)
    return (state, total + jnp.where(i < num_steps // 2, 0, updates)), None

  (_, total), _ = jax.lax.scan(
    step, (tx.init(signal), jnp.zeros_like(signal)), jnp.arange(num_steps)
  )
  return total / (num_steps - num_steps // 2)


def relative_errors(optimizer, decay, noise):
  """Returns the relative errors of the mean updates in bfloat16 [256]."""
  num_steps = int(40 / (1 - decay))
  exact, rounded = (
    jax.jit(mean_updates, static_argnums=(0, 1, 2))(
      transformation(optimizer, decay, dtype), noise, num_steps
    )
    for dtype in ('float32', 'bfloat16')
  )
  return rounded / exact - 1


def main():
  print(
    '| optimizer | decay | in bfloat16 | constant gradients: mean (worst) '
    '| noisy gradients: mean (worst) |'
  )
  print('| --- | ---: | ---: | ---: | ---: |')
  for optimizer in ('sgd', 'adam'):
    for decay in DECAYS:
      cells = []
      for noise in (0.0, 1.0):
        errors = relative_errors(optimizer, decay, noise)
        worst = errors[jnp.argmax(abs(errors))]
        cells.append(f'{errors.mean():+.2%} ({worst:+.2%})')
      print(
        f'| {optimizer} | {decay} | {float(jnp.bfloat16(decay)):.6f} | '
        + ' | '.join(cells)
        + ' |',
        flush=True,
      )


if __name__ == '__main__':
  main()
