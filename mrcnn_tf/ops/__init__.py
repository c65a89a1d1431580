"""Operations on feature maps: one Python face, several backends that give the same values."""
