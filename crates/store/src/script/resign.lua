local beats, resigned = KEYS[1], KEYS[2]
local holder, server, life = unpack(ARGV)
-- Tickets that this holder has sealed stay good, because nothing is left to be delivered. A store that was
-- restarted is another process, and may be as old as its file.
if redis.call('HGET', beats, holder) then redis.call('SET', resigned, server, 'PX', life) end
return { 'done', redis.call('HDEL', beats, holder) }
