local entry, beats, resigned = KEYS[1], KEYS[2], KEYS[3]
local holder, deadline, revision, sealer, spends, life, valid_until = unpack(ARGV)

local why = refused(beats, holder, deadline, revision)
if why then return why end
if now > tonumber(valid_until) then return { 'overdue' } end
local value = read(entry)
if value and value:byte(1) == NOTE then return { 'gone', value:byte(2), value:sub(3) } end
if value then return { 'malformed' } end
-- The daemon that sealed the ticket lives, or has ended with everything delivered. Otherwise the store may
-- lack what that daemon knew of the ticket's connection.
local lives = tonumber(redis.call('HGET', beats, sealer) or '0') > now
if not lives and not redis.call('GET', resigned) then return { 'holder' } end
if spends == '1' then
  redis.call('SET', entry, string.char(NOTE, SPENT) .. string.format('%.0f', now), 'PX', life)
end
return { 'good' }
