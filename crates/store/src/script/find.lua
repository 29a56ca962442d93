local entry, beats = KEYS[1], KEYS[2]
local holder, deadline, revision, mode, token, fit, versions, suite, valid_until = unpack(ARGV)

local why = refused(beats, holder, deadline, revision)
if why then return why end
-- A lookup that the store runs late may make a hold after its release.
if now > tonumber(valid_until) then return { 'overdue' } end
local value = redis.call('GET', entry)
if not value then return { 'none' } end
if value:byte(1) == NOTE then return { 'gone', value:byte(2), value:sub(3) } end
if value:byte(1) ~= ENTRY then return { 'malformed' } end
if mode == 'lookup' or mode == 'resume' then
  if value:sub(6, HEAD) ~= fit
    or not versions:find(value:sub(3, 3), 1, true)
    or (suite ~= '' and suite ~= value:sub(4, 5))
  then
    return { 'scope' }
  end
end
local holds = value:byte(HEAD + 1)
for i = 0, holds - 1 do
  local at = HEAD + 2 + HOLD * i
  local lives = tonumber(redis.call('HGET', beats, value:sub(at, at + 7)) or '0')
  if lives <= now then return { 'holder' } end
end
local head, sealed = value:sub(1, HEAD), value:sub(HEAD + 2 + HOLD * holds)
local single_use = value:byte(2) % 2 == 1
if mode == 'peek' or (mode == 'lookup' and not single_use) then
  return { 'found', head, holds, sealed }
end
if single_use and mode ~= 'join' then
  redis.call('DEL', entry)
  return { 'found', head, holds, sealed }
end
local hold = holder .. token
if not find_hold(value, hold) then
  if holds == 255 then return { 'full' } end
  local all = value:sub(HEAD + 2, HEAD + 1 + HOLD * holds) .. hold
  redis.call('SET', entry, head .. string.char(holds + 1) .. all .. sealed, 'KEEPTTL')
end
return { 'found', head, holds, sealed }
