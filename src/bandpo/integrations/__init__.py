"""Band in other training frameworks: one small module per framework, which imports it only when used.

Every framework gets the same `rule` mapping ({name: band, radius: 0.05, ...}), read by
`bandpo.integrations.common.read_rule`; docs/integrations has a page for each.
"""
