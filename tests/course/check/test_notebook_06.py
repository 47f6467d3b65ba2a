"""Wrong answers to the exercises of notebook 06, and what the hint must speak of."""

import torch

from dphrl_lite.course import check
from dphrl_lite.engine.batches import Stream
from dphrl_lite.objectives import group_advantages
from dphrl_lite.presampling import seed_of
from dphrl_lite.sampling import collate, generate, pad, token_logps

EPS = 1e-6


def f(logp, logp_ref):
    return torch.expm1(logp - logp_ref) - (logp - logp_ref)


def clipped(logp, old):
    return (logp - old).exp().clamp(0.8, 1.28)


def gains(logp, old, a, choose=torch.minimum):
    return choose((logp - old).exp() * a[:, None], clipped(logp, old) * a[:, None])


def explore(
    policy, task, drawn, seed=0, order=(0, 1, 2), reward=lambda v: v.correct, flat=True, compare=group_advantages
):
    """Stages 2 to 4, right or with one mistake."""
    prompts = [policy.encode(problem.prompt) for _, problem in drawn]
    seeds = [seed_of(seed, place, problem.id) for place, problem in drawn]
    groups = generate(policy, prompts, 8, seeds=seeds, max_new_tokens=40)
    answers = [(p, prompt, c) for (_, p), prompt, g in zip(drawn, prompts, groups, strict=True) for c in g]
    verdicts = [task.verify(problem, policy.decode(c.token_ids)) for problem, _, c in answers]
    rewards = torch.tensor([float(reward(v)) for v in verdicts]).view(-1, 8)
    triples = [(prompt, c.token_ids, c.logp) for _, prompt, c in answers]
    advantages = compare(rewards).flatten() if flat else compare(rewards)
    return [tuple(triple[i] for i in order) for triple in triples], advantages, rewards.mean().item()


def scored(policy, triples, which=0):
    prompts, answers, held = zip(*triples, strict=True)
    batch = collate(prompts, answers, policy.pad_id)
    return token_logps(policy.model, batch)[which], pad(held, 0.0), batch.mask


def train(
    policy, task, explored, stored, steps, place=0, gain=1.0, eta=1.0, shown=False, forget=True, learning_rate=1e-4
):
    """The loop, right or with one mistake."""
    problems, rehearsal, log = Stream(explored, 0, 0), Stream(stored, 0, 1), []
    problems.place = place
    weights = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(steps):
        fresh, advantages, reward = explore(policy, task, problems.take(8))
        logp, old, mask = scored(policy, fresh)
        exploration = -gains(logp, old, advantages + 1 - gain)[mask].mean()
        penalty = f(*(x := scored(policy, [triple for _, triple in rehearsal.take(16)]))[:2])[x[2]].mean()
        (exploration + eta * penalty).backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        norm = norm.clamp(max=1.0) if shown else norm
        optimizer.step()
        if forget:
            optimizer.zero_grad()
        values = {"penalty": penalty.item(), "gradient_norm": norm.item()}
        log.append({"reward": reward, "loss_exploration": exploration.item()} | values)
    return log


WRONG = [
    ("06-1", 1, "the hard problem alone"),
    ("06-1", 3, "still higher"),
    ("06-1", 64, "smaller k"),
    ("06-1", 2.5, "whole number"),
    ("06-2", -0.5, "wrong answer"),
    ("06-2", 0.75, "standard deviation"),
    ("06-2", 1.732, "4 − 1"),
    ("06-2", 3.0, "variance"),
    ("06-2", 1.0, "the mean"),
    ("06-2", 7.0, "three parts"),
    ("06-3", lambda r: (r - r.mean()) / (r.std() + EPS), "other problems"),
    ("06-3", lambda r: (r - r.mean(0)) / (r.std(0) + EPS), "Whose mean"),
    ("06-3", lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True), "no finite number"),
    ("06-3", lambda r: (r - r.mean(1, keepdim=True)) / (r.std() + EPS), "whose standard deviation"),
    ("06-3", lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, correction=0, keepdim=True) + EPS), "n − 1"),
    ("06-3", lambda r: (r - r.mean(1)) / r.std(1), "RuntimeError"),
    ("06-3", lambda r: r.mean(1), "shape"),
    ("06-4", {"sft": 0, "dph-f": -1}, "At a minimum"),
    ("06-4", {"sft": 1, "dph-f": 0}, "positive slope"),
    ("06-4", {"sft": 0, "dph-f": 0}, "slope of −d"),
    ("06-4", {"sft": -1, "dph-f": -1}, "all three terms"),
    ("06-4", -1, "A dict with the keys"),
    ("06-5", lambda logp, ref, mask: f(logp, ref).mean(), "padding still counts"),
    ("06-5", lambda logp, ref, mask: (f(logp, ref) * mask).mean(), "but still counted"),
    ("06-5", lambda logp, ref, mask: (f(logp, ref) * mask).sum() / len(mask), "number of answers"),
    ("06-5", lambda logp, ref, mask: ((f(logp, ref) * mask).sum(1) / mask.sum(1)).mean(), "each answer first"),
    ("06-5", lambda logp, ref, mask: (f(logp, ref) * mask).sum(), "the sum over the tokens"),
    ("06-5", lambda logp, ref, mask: f(ref, logp)[mask].mean(), "upside down"),
    ("06-5", lambda logp, ref, mask: (logp - ref)[mask].mean(), "how many they are"),
    ("06-6", lambda logp, old, a, mask: gains(logp, old, a)[mask].mean(), "The sign"),
    ("06-6", lambda logp, old, a, mask: -((logp - old).exp() * a[:, None])[mask].mean(), "Nothing is clipped"),
    ("06-6", lambda logp, old, a, mask: -(clipped(logp, old) * a[:, None])[mask].mean(), "both sides"),
    ("06-6", lambda logp, old, a, mask: -gains(logp, old, a).mean(), "padding still counts"),
    ("06-6", lambda logp, old, a, mask: -(gains(logp, old, a) * mask).mean(), "but still counted"),
    ("06-6", lambda logp, old, a, mask: -gains(old, logp, a)[mask].mean(), "upside down"),
    ("06-6", lambda logp, old, a, mask: -gains(logp, old, a, torch.maximum)[mask].mean(), "without end"),
    ("06-6", lambda logp, old, a, mask: -gains(logp, old, a)[mask].sum(), "the smaller of two terms"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn)[0], "Three things"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn[:3]), "32 triples; yours are 24"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn, seed=1), "Stage 2"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn, order=(0, 2, 1)), "Stage 2"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn, reward=lambda v: 1 - v.correct), "Stage 3"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn, flat=False), "in a row"),
    ("06-7", lambda policy, task, drawn: explore(policy, task, drawn, compare=lambda r: r - r.mean()), "Stage 4"),
    ("06-8", lambda policy, triples: scored(policy, triples)[0], "Three tensors"),
    ("06-8", lambda policy, triples: scored(policy, triples, which=1), "two things"),
    ("06-8", lambda policy, triples: tuple(x.flatten() for x in scored(policy, triples)), "shape of 'now'"),
    ("06-8", lambda policy, triples: tuple(x.detach() for x in scored(policy, triples)), "no gradient"),
    ("06-9", lambda *world: None, "returned nothing"),
    ("06-9", lambda *world: train(*world)[:4], "Five steps"),
    ("06-9", lambda *world: [list(line.values()) for line in train(*world)], "A list of five dicts"),
    ("06-9", lambda *world: train(*world, place=1), "Which problems"),
    ("06-9", lambda *world: train(*world, gain=0.0), "L_exp"),
    ("06-9", lambda *world: train(*world, eta=0.5, shown=True), "before it is clipped"),
    ("06-9", lambda *world: train(*world, forget=False), "gradients left from before"),
    ("06-9", lambda *world: train(*world, learning_rate=1e-3), "is it the update"),
]


def test_a_half_filled_dictionary_is_no_answer_yet():
    assert check.answer("06-4", {"sft": -1, "dph-f": ...}).right is None


def test_another_right_way_to_mend_a_function_is_right():
    masked = lambda logp, ref, mask: (f(logp, ref) * mask).sum() / mask.sum()
    grouped = lambda r: torch.stack([(row - row.mean()) / (row.std() + EPS) for row in r])
    assert check.answer("06-5", masked)
    assert check.answer("06-3", grouped)


def test_a_loop_of_ones_own_has_the_log_of_the_kits():
    assert check.answer("06-6", lambda logp, old, a, mask: -gains(logp, old, a)[mask].mean())
    assert check.answer("06-7", explore)
    assert check.answer("06-8", scored)
    result = check.answer("06-9", train)
    assert result and "no difference above 1e-5" in result.message
