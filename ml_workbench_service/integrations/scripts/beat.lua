-- Shows that the holder of a lease lives, where it has nothing else to ask for.
-- KEYS: stream. ARGV: group, owner, term. Answer: 1.

if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3], true) then return LOST end
return 1
