-- Appends one parcel of a worker's items, once and in its turn.
-- KEYS: stream, the number of the sender's last item that was taken.
-- ARGV: most entries, sender, number of the first item, how many, number of the last item of the parcel before it that
--       is not known to be here (-1: there is none), the items.
-- Answer: 1 taken, 0 it was here already, -1 no room, or the parcel before it is missing: send all of them again.

local last = tonumber(redis.call('GET', KEYS[2]) or '-1')
local first, num, before = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if first + num - 1 <= last then return 0 end
if before > last or redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return -1 end
redis.call('XADD', KEYS[1], '*', 'sender', ARGV[2], 'first', ARGV[3], 'num', ARGV[4], 'items', ARGV[6])
redis.call('SET', KEYS[2], first + num - 1, 'EX', 86400)
return 1
