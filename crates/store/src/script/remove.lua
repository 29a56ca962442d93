local done = 0
local beats = KEYS[#KEYS]
for i = 1, #KEYS - 1 do
  local reason, life, ticket = tonumber(ARGV[3 * i - 2]), ARGV[3 * i - 1], ARGV[3 * i]
  if ticket ~= '' then
    if put_on_list(KEYS[i], beats, ticket, reason, life) then done = done + 1 end
  else
    local value = read(KEYS[i])
    local is_note = value and value:byte(1) == NOTE
    if not is_note then
      done = done + redis.call('DEL', KEYS[i])
    end
    -- The note blocks a put of the same session that is still under way.
    if reason > 0 and not is_note then
      local note = string.char(NOTE, reason) .. string.format('%.0f', now)
      redis.call('SET', KEYS[i], note, 'PX', life)
    end
  end
end
return { 'done', done }
