local done = 0
for i, entry in ipairs(KEYS) do
  local reason, life = tonumber(ARGV[2 * i - 1]), ARGV[2 * i]
  local value = read(entry)
  local is_note = value and value:byte(1) == NOTE
  if not is_note then
    done = done + redis.call('DEL', entry)
  end
  -- The note blocks a put of the same session that is still under way.
  if reason > 0 and not is_note then
    local note = string.char(NOTE, reason) .. string.format('%.0f', now)
    redis.call('SET', entry, note, 'PX', life)
  end
end
return { 'done', done }
