local ring, ticket = KEYS[1], KEYS[2]
local known, mark, spends, life = unpack(ARGV)
-- The daemon must know the ring that the store has: one that the store has lost had other tickets.
local held = redis.call('HGET', ring, 's') or ''
if (redis.call('HGET', ring, 'v') or '0') ~= known or held:sub(1, #mark) ~= mark then
  return { 'behind' }
end
if redis.call('GET', ticket) then return { 'taken' } end
if spends == '1' then redis.call('SET', ticket, '', 'PX', life) end
return { 'stored' }
