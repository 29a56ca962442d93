local beats, list = KEYS[1], KEYS[2]
local holder, server, life = unpack(ARGV)
-- Tickets that this holder has sealed stay good, because nothing is left to be delivered. A store that was
-- restarted is another process, and may be as old as its file.
if lost_list(list, beats) then return { 'done', 0 } end
if redis.call('HGET', beats, holder) then put_on_list(list, beats, mark(holder, server), 0, life) end
return { 'done', redis.call('HDEL', beats, holder) }
