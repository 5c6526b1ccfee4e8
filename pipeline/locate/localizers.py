"""The localizers that there are beside exact tracing. A new one is a file beside this one, an entry here, and its name
in `localize.methods` of pipeline/settings/sections.py."""

from __future__ import annotations

from pipeline.locate import attribution_patching, gradient_norm, integrated_gradients, logit_attribution
from pipeline.locate.protocol import Localizer

LOCALIZERS: dict[str, Localizer] = {
    localizer.name: localizer
    for localizer in (
        attribution_patching.LOCALIZER,
        gradient_norm.LOCALIZER,
        integrated_gradients.LOCALIZER,
        logit_attribution.LOCALIZER,
        logit_attribution.LOCALIZER_AT_SUBJECT,
    )
}
