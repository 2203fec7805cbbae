"""Folded pairs of 1x1 convolutions: equal to both, and folded again when a weight changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lwrn_fast.models.folding import FoldCache, fold
from support.random_models import relative_error


class TestFolding:
    def test_fold_is_the_two_convolutions(self):
        outer, inner, x = torch.randn(5, 7, 1, 1), torch.randn(7, 3, 1, 1), torch.randn(2, 3, 4, 6)
        both = nn.functional.conv2d(nn.functional.conv2d(x.double(), inner.double()), outer.double())
        torch.testing.assert_close(nn.functional.conv2d(x, fold(outer, inner)), both.float())

    def test_folded_is_unfolded(self, resnet):
        image = torch.rand(1, 3, 64, 48)
        with torch.no_grad():
            folded = resnet(image)
        unfolded = resnet(image)
        assert unfolded.requires_grad
        assert relative_error(folded, unfolded.detach()) < 1e-5

    def test_state_dict_is_untouched(self, resnet):
        before = {name: value.clone() for name, value in resnet.state_dict().items()}
        with torch.no_grad():
            resnet(torch.rand(1, 3, 32, 32))
        after = resnet.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

    @pytest.mark.parametrize("which", ["p_ims1d2_outl3_dimred", "adapt_stage3_b2_joint_varout_dimred"])
    @pytest.mark.parametrize("how", ["in_place", "data_in_place", "data_replaced", "parameter_replaced", "load"])
    def test_folds_again_when_a_weight_changes(self, resnet, which, how):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            before = model(image)
            conv = getattr(model, which)
            changed = conv.weight.detach() * 3
            if how == "in_place":
                conv.weight.mul_(3)
            elif how == "data_in_place":
                conv.weight.data.mul_(3)
            elif how == "data_replaced":
                conv.weight.data = changed
            elif how == "parameter_replaced":
                conv.weight = nn.Parameter(changed)
            else:
                model.load_state_dict({**model.state_dict(), f"{which}.weight": changed})
            after = model(image)
        assert relative_error(after, model(image).detach()) < 1e-5
        assert relative_error(after, before) > 1e-3

    def test_follows_dtype(self, resnet):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            single = model(image)
            assert relative_error(single, model.double()(image.double())) < 1e-4

    def test_cache_folds_once(self):
        cache, outer, inner = FoldCache(), torch.randn(4, 4, 1, 1), torch.randn(4, 3, 1, 1)
        first = cache.get("name", outer, inner)
        assert cache.get("name", outer, inner) is first
        assert not cache.get("name", nn.Parameter(outer), inner).requires_grad

    def test_filled_in_inference_mode_serves_gradients(self, resnet):
        model = copy.deepcopy(resnet).requires_grad_(False)
        with torch.inference_mode():
            model(torch.rand(1, 3, 32, 32))
        image = torch.rand(1, 3, 32, 32, requires_grad=True)
        model(image).sum().backward()
        assert image.grad is not None

    @pytest.mark.parametrize("name", ["p_ims1d2_outl2_dimred", "adapt_stage3_b2_joint_varout_dimred"])
    def test_derivatives_in_the_weights_are_not_forgotten(self, resnet, name):
        """Forward-mode duals through torch.func and forward_ad, with an empty and a filled cache."""
        model, image = copy.deepcopy(resnet).double(), torch.rand(1, 3, 32, 32).double()
        key, weight = f"{name}.weight", model.get_parameter(f"{name}.weight").detach()
        direction = torch.randn_like(weight)

        def logits(value: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, {key: value}, (image,))

        _, expected = torch.func.jvp(logits, (weight,), (direction,))
        assert expected.abs().max() > 0
        with torch.no_grad():
            model(image)
        assert torch.equal(torch.func.jvp(logits, (weight,), (direction,))[1], expected)
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            out = logits(torch.autograd.forward_ad.make_dual(weight, direction))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, expected)
        _, pull = torch.func.vjp(logits, weight)
        adjoint = torch.randn_like(expected)
        assert float((pull(adjoint)[0] * direction).sum() / (adjoint * expected).sum()) == pytest.approx(1, rel=1e-3)

    def test_an_ensemble_of_weights_is_batched(self, resnet):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        key = "adapt_stage2_b2_joint_varout_dimred.weight"
        weights = torch.stack([model.get_parameter(key).detach() * scale for scale in (1, -1, 3)])
        with torch.no_grad():
            model(image)
            run = lambda weight: torch.func.functional_call(model, {key: weight}, (image,))  # noqa: E731
            got = torch.vmap(run)(weights)
            for result, weight in zip(got, weights, strict=True):
                assert relative_error(result, run(weight)) < 1e-5

    @pytest.mark.parametrize("how", ["traced", "fake", "subclass"])
    def test_cache_is_for_plain_values_alone(self, how):
        cache, outer, inner = FoldCache(), torch.randn(4, 4, 1, 1), torch.randn(4, 3, 1, 1)
        kept = cache.get("name", outer, inner)
        if how == "traced":
            seen = []
            torch.jit.trace(lambda x: seen.append(cache.get("name", outer, inner)) or x + 1, outer)
            assert seen[0] is None
        elif how == "fake":
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert cache.get("name", outer, inner) is None
                assert cache.get("name", mode.from_tensor(outer), mode.from_tensor(inner)) is None
        else:
            assert cache.get("name", outer.as_subclass(type("Mine", (torch.Tensor,), {})), inner) is None
        assert cache.get("name", outer, inner) is kept

    def test_threads_with_weights_of_their_own_share_a_cache(self):
        """Replicas and shallow copies of a model do so."""
        cache = FoldCache()
        pairs = [(torch.randn(8, 8, 1, 1), torch.randn(8, 8, 1, 1)) for _ in range(4)]

        def run(i: int) -> bool:
            outer, inner = pairs[i % 4]
            return torch.equal(cache.get("name", outer, inner), fold(outer, inner))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(400)))

    def test_a_bias_is_not_forgotten(self, resnet):
        """Folding a batch normalisation into a convolution gives it one."""
        image = torch.rand(1, 3, 32, 32)
        for name in ("p_ims1d2_outl2_dimred", "adapt_stage2_b2_joint_varout_dimred"):
            model = copy.deepcopy(resnet)
            with torch.no_grad():
                before = model(image)
                model.get_submodule(name).bias = nn.Parameter(torch.randn(256))
                after = model(image)
            assert relative_error(after, model(image).detach()) < 1e-5
            assert relative_error(after, before) > 1e-3

    def test_copies_do_not_share(self, resnet):
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            expected = resnet(image)
            for twin in (copy.deepcopy(resnet), pickle.loads(pickle.dumps(resnet))):
                twin.p_ims1d2_outl2_dimred.weight.zero_()
                assert not torch.equal(twin(image), expected)
            assert torch.equal(resnet(image), expected)
