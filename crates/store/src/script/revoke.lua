local list, known, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local function ends(value)
  return tonumber((value or ''):match('^(%d+):') or '0')
end
local all = redis.call('HGETALL', list)
local count = 0
for i = 1, #all, 2 do
  if all[i] ~= 'v' then
    if ends(all[i + 1]) < now then redis.call('HDEL', list, all[i]) else count = count + 1 end
  end
end
local later = {}
for i = 3, #ARGV, 2 do
  local held = redis.call('HGET', list, ARGV[i])
  if not held then count = count + 1 end
  if ends(held) < ends(ARGV[i + 1]) then table.insert(later, i) end
end
if count > most then return { 'many' } end
for _, i in ipairs(later) do redis.call('HSET', list, ARGV[i], ARGV[i + 1]) end
local version = tonumber(redis.call('HGET', list, 'v') or '0')
-- The time, so that a list that was restored from a file never has the version of a later one.
if #later > 0 then version = math.max(version + 1, now) end
version = string.format('%.0f', math.max(version, known))
redis.call('HSET', list, 'v', version)
return { 'revocations', version }
