local beats, resigned = KEYS[1], KEYS[2]
local holder, life = unpack(ARGV)
-- Tickets that this holder has sealed stay good, because nothing is left to be delivered.
if redis.call('HGET', beats, holder) then redis.call('SET', resigned, '', 'PX', life) end
return { 'done', redis.call('HDEL', beats, holder) }
