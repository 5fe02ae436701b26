-- Lease: gives a group's to a process where nobody holds it, or where the holder's term and beat are still the ones
-- that the caller saw when it took the holder for dead. Each grant has a higher term than all before it, on this server
-- or, by `known term`, in the consumer's checkpoint. No clock is read.
-- A holder that lost touch with the server takes its own lease anew, so that what it sent before is of an old term;
-- where it is not the holder any more, others may have gone on from its checkpoint, and what it knows is out of date.
-- KEYS: stream. ARGV: group, owner, known term, seen term, seen beat ('' and '': take it only where nobody holds it), 1
--       where the caller holds it, by its own word, under the known term.
-- Answer: {1 where granted, owner, term, beat}: the holder after this call.

local key = KEYS[1] .. ':lease:' .. ARGV[1]
passes_memory_limit(key)
local lease = redis.call('HMGET', key, 'owner', 'term', 'beat')
local owner, term, beat = lease[1] or '', lease[2] or '0', lease[3] or '0'
local is_mine = owner == ARGV[2] and term == ARGV[3]
local is_free = owner == '' or owner == ARGV[2] or (term == ARGV[4] and beat == ARGV[5])
if (ARGV[6] == '1' and is_mine) or (ARGV[6] ~= '1' and is_free) then
  term = tostring(math.max(tonumber(term), tonumber(ARGV[3])) + 1)
  redis.call('HSET', key, 'owner', ARGV[2], 'term', term, 'beat', 0)
  return {1, ARGV[2], term, '0'}
end
return {0, owner, term, beat}
