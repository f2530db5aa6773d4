"""The pages as people use them: in Debian's Chromium, without script, by keyboard, small and large, light and dark (`make browser`)."""
