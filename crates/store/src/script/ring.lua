local ring, daemon = KEYS[1], ARGV[1]
local lease, known, mark, version, restores, sealed, life = unpack(ARGV, 2)
lease, known, version = tonumber(lease), tonumber(known), tonumber(version)

-- The daemons that look after the ring, by the time of their last look.
redis.call('HSET', ring, 'd' .. daemon, string.format('%.0f', now))
local alive = {}
local all = redis.call('HGETALL', ring)
for i = 1, #all, 2 do
  if all[i]:sub(1, 1) == 'd' then
    if tonumber(all[i + 1]) > now - lease then
      table.insert(alive, all[i]:sub(2))
    else
      redis.call('HDEL', ring, all[i])
    end
  end
end

-- One of them rotates it.
local leader = redis.call('HGET', ring, 'l')
local ends = tonumber(redis.call('HGET', ring, 'e') or '0')
local leads = 0
if not leader or leader == daemon or ends <= now then
  redis.call('HSET', ring, 'l', daemon, 'e', string.format('%.0f', now + lease))
  leads = 1
end

-- A write follows the version that its daemon knows. One that gives back what the store has lost may be of
-- any later version. A value begins with bytes that no other value has, so they tell two values of one
-- version apart.
local current = tonumber(redis.call('HGET', ring, 'v') or '0')
local held = redis.call('HGET', ring, 's') or ''
local is_known = current == known and held:sub(1, #mark) == mark
local written = 0
if version > current and (restores == '1' or (is_known and version == current + 1)) then
  redis.call('HSET', ring, 'v', string.format('%.0f', version), 's', sealed)
  current, is_known, written = version, true, 1
end
-- A ring that no daemon looks after any more is forgotten, and at once where none was written.
redis.call('PEXPIRE', ring, current > 0 and life or lease)
return { 'ring', now, current, leads, written, is_known and '' or held, unpack(alive) }
