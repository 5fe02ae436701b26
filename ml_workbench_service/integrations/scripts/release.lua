-- Gives a lease back; its term stays, so that the next one is higher.
-- KEYS: stream. ARGV: group, owner, term. Answer: 1 where it was held.

if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3], false) then return 0 end
redis.call('HSET', KEYS[1] .. ':lease:' .. ARGV[1], 'owner', '')
return 1
