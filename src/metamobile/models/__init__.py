"""The networks: operators (F) -> blocks (Meta Mobile Block) -> emo (the network); variants is their table."""
