-- Gives a group's lease to a process: where nobody holds it, or where the holder's term and beat are still the ones that
-- the caller saw when it judged the holder dead. Each grant has a higher term than all before it, on this server or, by
-- `known term`, in the consumer's checkpoint. No clock is read.
-- KEYS: stream. ARGV: group, owner, known term, seen term, seen beat ('' and '': take it only where nobody holds it).
-- Answer: {1 where granted, owner, term, beat}: the holder after this call.

local key = KEYS[1] .. ':lease:' .. ARGV[1]
local lease = redis.call('HMGET', key, 'owner', 'term', 'beat')
local owner, term, beat = lease[1] or '', lease[2] or '0', lease[3] or '0'
if owner == '' or owner == ARGV[2] or (term == ARGV[4] and beat == ARGV[5]) then
  term = tostring(math.max(tonumber(term), tonumber(ARGV[3])) + 1)
  redis.call('HSET', key, 'owner', ARGV[2], 'term', term, 'beat', 0)
  return {1, ARGV[2], term, '0'}
end
return {0, owner, term, beat}
