"""The report labeller: a RoBERTa and a linear layer, which read the 18 abnormalities from a report."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from ctclip_model.config import LabellerConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.models.bert import first_token

FIRST_POSITION = 2  # RoBERTa numbers positions from behind its padding id, 1


class ReportLabeller(nn.Module):
    """Report tokens to one logit for each abnormality; keys of `state_dict` as in `RadBertClassifier.pth`."""

    def __init__(self, config: LabellerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = RobertaModel(
            RobertaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate_size,
                max_position_embeddings=config.max_length + FIRST_POSITION,
                type_vocab_size=1,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                layer_norm_eps=1e-5,
            )
        )
        self.classifier = nn.Linear(config.hidden_size, len(ABNORMALITIES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 18), in the order of `ABNORMALITIES`, of token ids and their mask, (B, tokens) both."""
        # Positions from the mask, not from the ids: a tokenizer may pad with another id than RoBERTa's.
        positions = attention_mask.cumsum(dim=1) * attention_mask + FIRST_POSITION - 1
        token = first_token(self.model, input_ids, attention_mask, position_ids=positions)
        return self.classifier(self.model.pooler(token.unsqueeze(1)))
